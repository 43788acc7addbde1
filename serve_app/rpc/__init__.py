"""gRPC: the protocol definitions, the code generated from them (`make proto`), and the door that serves them."""

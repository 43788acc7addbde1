"""Talk to the model of `examples/chat/serve_config.yaml`: `python examples/chat/chat.py "What is a lighthouse?"`.

Any OpenAI client does; this one prints the answer as it is written.
"""

import sys

import openai


def main() -> None:
    """Ask what the command line says."""
    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none needed")
    question = " ".join(sys.argv[1:]) or "Say hello in five words."
    stream = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": question}], max_completion_tokens=200, stream=True
    )
    for chunk in stream:
        sys.stdout.write(chunk.choices[0].delta.content or "" if chunk.choices else "")
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()

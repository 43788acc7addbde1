"""The peers' servers, each as its documentation teaches. They share only `encoder`, and import nothing of ours."""

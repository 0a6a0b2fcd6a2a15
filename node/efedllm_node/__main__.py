"""`python -m efedllm_node`."""

from efedllm_node.cli import app

if __name__ == "__main__":
    app()

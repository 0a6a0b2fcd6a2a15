"""`python -m client`: the `efedllm` command."""

from client.main import main

if __name__ == "__main__":
    main()

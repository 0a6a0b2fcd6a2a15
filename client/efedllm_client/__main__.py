"""`python -m efedllm_client`: the `efedllm` command."""

from efedllm_client.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m gpusched.client.cli`: the same as `gpusched`."""

from gpusched.client.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m mobileo_mlx`: the command `mobileo-mlx`, for where its script is not on the path."""

import sys

from mobileo_cli.main import main

if __name__ == "__main__":
    sys.exit(main())

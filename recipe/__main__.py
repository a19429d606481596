"""`python -m recipe` is the command `recipe`."""

from recipe.cli import app

if __name__ == "__main__":
    app()

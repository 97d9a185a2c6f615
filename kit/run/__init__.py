"""The notebook runner and the command line. `kit.run.notebooks.run` executes notebooks; `kit.run.cli.main` is `kit`."""

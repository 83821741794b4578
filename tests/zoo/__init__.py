"""The real exports of `model_zoo_fixtures`; most run with `--zoo`."""

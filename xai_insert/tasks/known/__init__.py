"""The tasks that are known, a file each; see `xai_insert.tasks.base`."""

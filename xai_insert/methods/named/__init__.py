"""The methods that can be asked for, a file each, named as it is asked for; see `xai_insert.methods.base`."""

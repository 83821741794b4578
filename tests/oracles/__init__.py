"""Numbers of maps against definitions computed outside the tool."""

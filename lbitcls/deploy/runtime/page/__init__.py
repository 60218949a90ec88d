"""Folder with a web page that runs a model: its runtime, the steps it runs, its files, and a server."""

"""Every setting, typed and checked: the only wing that imports pydantic. config.py lists the sections and their files.

Entry: `load.load`, which returns a `config.Config`. Imports errors alone.
"""

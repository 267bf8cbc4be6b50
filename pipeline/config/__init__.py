"""Every setting, typed and checked: the only wing that knows pydantic. A section `name` is in `name.py`.

Entry: `load.load`, which gives a `config.Config`. Imports errors alone.
"""

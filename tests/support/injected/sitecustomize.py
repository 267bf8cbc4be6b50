"""Python runs this file at startup if the folder is on PYTHONPATH. It changes all processes of a cluster: see its imports."""

import imported
import short_memory

imported.install()
short_memory.install()

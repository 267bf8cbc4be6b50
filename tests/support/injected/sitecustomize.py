"""On PYTHONPATH, this changes each Python process of a cluster; see the modules that it imports."""

import imported
import short_memory

imported.install()
short_memory.install()

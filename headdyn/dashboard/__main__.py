"""`python -m headdyn.dashboard`."""

import sys

from headdyn.dashboard import main

sys.exit(main())

"""Read memory for the first time without a free descriptor, and again with some."""

import errno
import resource

from memtools.errors import ReadingError
from memtools.readings import resident_bytes

resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    resident_bytes()
except ReadingError as error:
    print(error.errno == errno.EMFILE, error)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(resident_bytes() > 5_000_000)

"""What agent authors import (through ``aios``); it knows the ABI and speaks HTTP to the daemon."""

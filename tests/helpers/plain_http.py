"""Single requests to servers of this machine, which wait for as long as a busy machine needs."""

import httpx
from waiting import PATIENCE

# one client for all, since each reads the certificates of the system when it is made; without any, and a connection
# for each request, as of different programs
web = httpx.Client(timeout=PATIENCE, verify=False, limits=httpx.Limits(max_keepalive_connections=0))

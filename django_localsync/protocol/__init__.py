"""Pure: the sync protocol: lines, requests, upload bodies, the server's stream session."""

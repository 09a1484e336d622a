"""Looks every name of the arguments up by socket.getaddrinfo."""
import socket
import sys

for name in sys.argv[1:]:
    try:
        socket.getaddrinfo(name, 80)
    except OSError as error:
        print(name, error)

// getaddrinfo looks every name of its arguments up, IPv4 and IPv6.
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints, *found = NULL;
		memset(&hints, 0, sizeof hints);
		hints.ai_socktype = SOCK_STREAM;
		int err = getaddrinfo(argv[i], NULL, &hints, &found);
		printf("%s %s\n", argv[i], err ? gai_strerror(err) : "found");
		if (!err)
			freeaddrinfo(found);
	}
	return 0;
}

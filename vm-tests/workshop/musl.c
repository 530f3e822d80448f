// A client that is linked with musl, as everything on Alpine is: its resolver asks in a way of its own.
#include <netdb.h>
#include <stdio.h>
#include <time.h>
#include <sys/socket.h>

int main(int count, char **words) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    int error = getaddrinfo(words[count - 1], "443", &hints, &found);
    clock_gettime(CLOCK_MONOTONIC, &to);
    if (error) {
        long took = (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
        fprintf(stderr, "%s, after %ld ms\n", gai_strerror(error), took);
        return 1;
    }
    for (; found; found = found->ai_next) {
        int at = socket(found->ai_family, found->ai_socktype, found->ai_protocol);
        if (at >= 0 && connect(at, found->ai_addr, found->ai_addrlen) == 0)
            return puts("reached") < 0;
    }
    perror("connect");
    return 1;
}

// Both ends of SCTP associations over raw IP: usrsctp, FreeBSD's stack in a process, for kernels that have none.
//
//   peer serve NAME PORT ADDRESS...         says NAME to everybody, then sends back what comes
//   peer ask FROM TO PORT MESSAGES OCTETS PAUSE_MS
//                                           one association from the address FROM: takes the name, has the messages come
//                                           back, ends it; says `NAME MILLISECONDS` (of the handshake)
//
// Every socket is bound to one address, so that an INIT lists no others. A host has one that serves: each would abort the
// associations of the other, whose packets it gets as well. For the same reason one asks at a time.
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <usrsctp.h>

#define MOST 65536

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

static const char *name;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    _exit(1);
}

static socklen_t read_address(const char *text, const char *port, union address *address)
{
    memset(address, 0, sizeof(*address));
    if (inet_pton(AF_INET6, text, &address->v6.sin6_addr) == 1) {
        address->v6.sin6_family = AF_INET6;
        address->v6.sin6_port = htons(atoi(port));
        return sizeof(address->v6);
    }
    if (inet_pton(AF_INET, text, &address->v4.sin_addr) != 1)
        fail(text);
    address->v4.sin_family = AF_INET;
    address->v4.sin_port = htons(atoi(port));
    return sizeof(address->v4);
}

// Octets of the next message; 0 at the end of the association, -1 where it broke.
static ssize_t receive(struct socket *socket, char *buffer)
{
    size_t length = 0;
    for (;;) {
        struct sctp_rcvinfo info;
        socklen_t from_len = 0, info_len = sizeof(info);
        unsigned int kind = 0;
        int flags = 0;
        ssize_t more =
            usrsctp_recvv(socket, buffer + length, MOST - length, NULL, &from_len, &info, &info_len, &kind, &flags);
        if (more <= 0)
            return more;
        if (flags & MSG_NOTIFICATION)
            continue;
        length += more;
        if (flags & MSG_EOR)
            return length;
    }
}

static int give(struct socket *socket, const char *buffer, size_t length)
{
    return usrsctp_sendv(socket, buffer, length, NULL, 0, NULL, 0, SCTP_SENDV_NOINFO, 0) == (ssize_t)length;
}

static void *send_back(void *argument)
{
    struct socket *socket = argument;
    char *buffer = malloc(MOST);
    ssize_t length;
    if (give(socket, name, strlen(name)))
        while ((length = receive(socket, buffer)) > 0 && give(socket, buffer, length))
            ;
    usrsctp_close(socket);
    free(buffer);
    return NULL;
}

static void begin(void *(*work)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, argument))
        fail("thread");
    pthread_detach(thread);
}

static void *accept_all(void *listening)
{
    for (;;) {
        struct socket *accepted = usrsctp_accept(listening, NULL, NULL);
        if (!accepted)
            fail("accept");
        begin(send_back, accepted);
    }
}

static void serve(int addresses, char **words)
{
    name = words[0];
    for (int at = 0; at < addresses; at++) {
        union address own;
        socklen_t len = read_address(words[2 + at], words[1], &own);
        struct socket *listening = usrsctp_socket(own.any.sa_family, SOCK_STREAM, IPPROTO_SCTP, NULL, NULL, 0, NULL);
        if (!listening || usrsctp_bind(listening, &own.any, len) || usrsctp_listen(listening, 64))
            fail("serve");
        begin(accept_all, listening);
    }
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void ask(char **words)
{
    union address own, target;
    socklen_t own_len = read_address(words[0], "0", &own), len = read_address(words[1], words[2], &target);
    int messages = atoi(words[3]), octets = atoi(words[4]), pause_ms = atoi(words[5]);
    // What is left of one that asked before is none of this one's.
    usrsctp_sysctl_set_sctp_blackhole(2);
    struct socket *socket = usrsctp_socket(own.any.sa_family, SOCK_STREAM, IPPROTO_SCTP, NULL, NULL, 0, NULL);
    if (!socket || usrsctp_bind(socket, &own.any, own_len))
        fail("bind");
    double began = now_ms();
    if (usrsctp_connect(socket, &target.any, len))
        fail("connect");
    double took = now_ms() - began;
    char *said = malloc(MOST), *heard = malloc(MOST), from[64];
    ssize_t length = receive(socket, heard);
    if (length <= 0 || length >= (ssize_t)sizeof(from))
        fail("name");
    memcpy(from, heard, length);
    from[length] = 0;
    for (int message = 0; message < messages; message++) {
        for (int at = 0; at < octets; at++)
            said[at] = (char)(at % 251 + message);
        if (!give(socket, said, octets))
            fail("send");
        if (receive(socket, heard) != octets || memcmp(said, heard, octets))
            fail("another answer");
        usleep(pause_ms * 1000);
    }
    // SHUTDOWN, and its end is waited for.
    usrsctp_close(socket);
    for (int tries = 0; usrsctp_finish() != 0; tries++) {
        if (tries == 500)
            fail("shutdown");
        usleep(10000);
    }
    printf("%s %.0f\n", from, took);
}

int main(int count, char **words)
{
    usrsctp_init(0, NULL, NULL);
    if (count >= 5 && !strcmp(words[1], "serve"))
        serve(count - 4, words + 2);
    else if (count == 8 && !strcmp(words[1], "ask"))
        ask(words + 2);
    else
        return 2;
    return 0;
}

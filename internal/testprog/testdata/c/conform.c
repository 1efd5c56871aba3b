/* Does what the conformance suite of drivers asks for: its first argument names
   the program. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char block[64 << 10];

static int fail(const char *what) {
	perror(what);
	return 1;
}

static int flood(int fd, long n) {
	while (n > 0) {
		size_t want = n < (long)sizeof block ? (size_t)n : sizeof block;
		ssize_t done = write(fd, block, want);
		if (done <= 0)
			return fail("write");
		n -= done;
	}
	return 0;
}

static int echo(void) {
	for (;;) {
		ssize_t n = read(0, block, sizeof block);
		if (n <= 0)
			return n < 0 ? fail("read") : 0;
		for (ssize_t at = 0; at < n;) {
			ssize_t done = write(1, block + at, (size_t)(n - at));
			if (done <= 0)
				return fail("write");
			at += done;
		}
	}
}

static int nap(const char *seconds) {
	double s = atof(seconds);
	struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};
	return nanosleep(&t, NULL) ? fail("sleep") : 0;
}

static int hog(long n) {
	const long piece = 1 << 20;
	for (; n > 0; n -= piece) {
		volatile char *b = malloc((size_t)piece);
		if (!b)
			return fail("malloc");
		for (long i = 0; i < piece; i += 4096)
			b[i] = 1;
	}
	return 0;
}

static int fill(long n) {
	int fd = open("/data/fill", O_CREAT | O_TRUNC | O_WRONLY, 0644);
	if (fd < 0)
		return fail("fill");
	int status = flood(fd, n);
	return close(fd) ? fail("close") : status;
}

static int files(long n) {
	char name[32];
	for (long i = 0; i < n; i++) {
		snprintf(name, sizeof name, "/data/f%ld", i);
		if (open(name, O_CREAT | O_TRUNC | O_WRONLY, 0644) < 0)
			return fail(name);
	}
	return 0;
}

/* Prints the names and sizes of what a directory has, in order. */
static int list(const char *path) {
	struct dirent **names;
	int n = scandir(path, &names, NULL, alphasort);
	if (n < 0)
		return fail(path);
	for (int i = 0; i < n; i++) {
		struct stat st;
		char name[300];
		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(name, sizeof name, "%s/%s", path, names[i]->d_name);
		if (stat(name, &st))
			return fail(name);
		printf("%s %lld\n", names[i]->d_name, (long long)st.st_size);
	}
	return 0;
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	const char *arg = argc > 2 ? argv[2] : "0";
	long n = atol(arg);
#define IS(name) (strcmp(what, name) == 0)
	if (IS("exit0"))
		return 0;
	if (IS("exit7"))
		return 7;
	if (IS("echo"))
		return echo();
	if (IS("sleep"))
		return nap(arg);
	if (IS("ready")) {
		if (write(1, "ready\n", 6) != 6)
			return fail("write");
		return nap(arg);
	}
	if (IS("flood"))
		return flood(1, n);
	if (IS("flooderr"))
		return flood(2, n);
	if (IS("both"))
		return write(1, "out\n", 4) == 4 && write(2, "err\n", 4) == 4 ? 0 : fail("write");
	if (IS("args")) {
		for (int i = 2; i < argc; i++)
			fwrite(argv[i], strlen(argv[i]) + 1, 1, stdout);
		return 0;
	}
	if (IS("env")) {
		for (char **e = environ; *e; e++)
			fwrite(*e, strlen(*e) + 1, 1, stdout);
		return 0;
	}
	if (IS("spin"))
		for (volatile unsigned long i = 1; i; i += 2)
			;
	if (IS("crash"))
		__builtin_trap();
	if (IS("hog"))
		return hog(n);
	if (IS("list"))
		return list(arg);
	if (IS("fill"))
		return fill(n);
	if (IS("files"))
		return files(n);
	fprintf(stderr, "conform: unknown program %s\n", what);
	return 1;
}

/* Prints the SHA-256 (FIPS 180-4) of generated data (argument: MiB, 16 by
 * default), or of stdin (argument "-"). The data is that of the Go program of
 * the same name. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The round constants and the start values are the first 32 bits of the
 * fractional parts of cube and square roots of the first primes; they are
 * computed in integers. */
static uint32_t k[64], h[8];

/* root returns floor(2^32 * n^(1/power)) modulo 2^32, for n < 312. */
static uint32_t root(uint32_t n, int power) {
	uint64_t r = 0;
	for (int bit = 36; bit >= 0; bit--) {
		uint64_t t = r | (uint64_t)1 << bit;
		/* t^power <= n * 2^(32*power), in 128 bits. */
		unsigned __int128 v = (unsigned __int128)t * t, max = (unsigned __int128)n << 64;
		if (power == 3) {
			/* t < 2^37, so v * t < 2^111; n << 96 < 2^105. */
			v *= t;
			max <<= 32;
		}
		if (v <= max)
			r = t;
	}
	return (uint32_t)r;
}

static void init(void) {
	int found = 0;
	for (uint32_t n = 2; found < 64; n++) {
		int prime = 1;
		for (uint32_t d = 2; d * d <= n; d++)
			if (n % d == 0)
				prime = 0;
		if (!prime)
			continue;
		if (found < 8)
			h[found] = root(n, 2);
		k[found++] = root(n, 3);
	}
}

#define ROTR(x, n) ((x) >> (n) | (x) << (32 - (n)))

static void block(const uint8_t *p) {
	uint32_t w[64], s[8];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t a = ROTR(w[i - 15], 7) ^ ROTR(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t b = ROTR(w[i - 2], 17) ^ ROTR(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + a + w[i - 7] + b;
	}
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t t1 = s[7] + (ROTR(s[4], 6) ^ ROTR(s[4], 11) ^ ROTR(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
		uint32_t t2 = (ROTR(s[0], 2) ^ ROTR(s[0], 13) ^ ROTR(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		s[7] = s[6];
		s[6] = s[5];
		s[5] = s[4];
		s[4] = s[3] + t1;
		s[3] = s[2];
		s[2] = s[1];
		s[1] = s[0];
		s[0] = t1 + t2;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

static uint8_t pending[128];
static size_t held;
static uint64_t total;

static void update(const uint8_t *p, size_t n) {
	total += n;
	while (n > 0) {
		if (held == 0 && n >= 64) {
			block(p);
			p += 64;
			n -= 64;
			continue;
		}
		size_t take = 64 - held < n ? 64 - held : n;
		memcpy(pending + held, p, take);
		held += take;
		p += take;
		n -= take;
		if (held == 64) {
			block(pending);
			held = 0;
		}
	}
}

static void finish(void) {
	uint64_t bits = total * 8;
	size_t end = held < 56 ? 64 : 128;
	memset(pending + held, 0, sizeof pending - held);
	pending[held] = 0x80;
	for (int i = 0; i < 8; i++)
		pending[end - 1 - i] = (uint8_t)(bits >> (8 * i));
	for (size_t i = 0; i < end; i += 64)
		block(pending + i);
	for (int i = 0; i < 8; i++)
		printf("%08x", h[i]);
	printf("\n");
}

static uint8_t buf[1 << 20];

int main(int argc, char **argv) {
	init();
	if (argc > 1 && strcmp(argv[1], "-") == 0) {
		size_t n;
		while ((n = fread(buf, 1, sizeof buf, stdin)) > 0)
			update(buf, n);
	} else {
		long mib = argc > 1 ? atol(argv[1]) : 16;
		uint32_t x = 1;
		for (long m = 0; m < mib; m++) {
			for (size_t i = 0; i < sizeof buf; i++) {
				x = x * 1664525 + 1013904223;
				buf[i] = (uint8_t)(x >> 24);
			}
			update(buf, sizeof buf);
		}
	}
	finish();
	return 0;
}

/* The edit distance of two arguments, as JSON. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
	if (argc != 3) {
		fprintf(stderr, "usage: %s A B\n", argv[0]);
		return 2;
	}
	const char *a = argv[1], *b = argv[2];
	size_t n = strlen(a), m = strlen(b);
	/* One row of the table at a time: row[j] is the distance of a[:i] and b[:j]. */
	size_t *row = malloc((m + 1) * sizeof *row);
	if (!row) {
		fputs("no memory\n", stderr);
		return 1;
	}
	for (size_t j = 0; j <= m; j++)
		row[j] = j;
	for (size_t i = 1; i <= n; i++) {
		size_t before = row[0]; /* of the row above, to the left */
		row[0] = i;
		for (size_t j = 1; j <= m; j++) {
			size_t above = row[j], best = before + (a[i - 1] != b[j - 1]);
			if (above + 1 < best)
				best = above + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			before = above;
			row[j] = best;
		}
	}
	size_t longer = n > m ? n : m;
	printf("{\"distance\":%zu,\"alike\":%.4f}\n", row[m], longer ? 1 - (double)row[m] / longer : 1.0);
	free(row);
	return 0;
}

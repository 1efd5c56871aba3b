/* Moves the sun and four planets for some steps (argument, 500000 by default)
 * and prints the energy before and after. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BODIES 5
static const double pi = 3.141592653589793, year = 365.24, dt = 0.01;

struct body {
	double x, y, z, vx, vy, vz, mass;
};

static struct body bodies[BODIES] = {
	{0, 0, 0, 0, 0, 0, 1},
	{4.84143144246472090, -1.16032004402742839, -0.103622044471123109, 0.00166007664274403694, 0.00769901118419740425, -0.0000690460016972063023, 0.000954791938424326609},
	{8.34336671824457987, 4.12479856412430479, -0.403523417114321381, -0.00276742510726411328, 0.00499852801234917238, 0.0000230417297573763929, 0.000285885980666130812},
	{12.8943695621391310, -15.1111514016986312, -0.223307578892655734, 0.00296460137564761618, 0.00237847173959480950, -0.0000296589568540237556, 0.0000436624404335156298},
	{15.3796971148509165, -25.9193146099879641, 0.179258772950371181, 0.00268067772490389322, 0.00162824170038242295, -0.0000951592254519715870, 0.0000515138902046611451},
};

static double energy(void) {
	double e = 0;
	for (int i = 0; i < BODIES; i++) {
		struct body *b = &bodies[i];
		e += 0.5 * b->mass * (b->vx * b->vx + b->vy * b->vy + b->vz * b->vz);
		for (int j = i + 1; j < BODIES; j++) {
			struct body *c = &bodies[j];
			double dx = b->x - c->x, dy = b->y - c->y, dz = b->z - c->z;
			e -= b->mass * c->mass / sqrt(dx * dx + dy * dy + dz * dz);
		}
	}
	return e;
}

static void step(void) {
	for (int i = 0; i < BODIES; i++) {
		struct body *b = &bodies[i];
		for (int j = i + 1; j < BODIES; j++) {
			struct body *c = &bodies[j];
			double dx = b->x - c->x, dy = b->y - c->y, dz = b->z - c->z;
			double d2 = dx * dx + dy * dy + dz * dz;
			double mag = dt / (d2 * sqrt(d2));
			b->vx -= dx * c->mass * mag;
			b->vy -= dy * c->mass * mag;
			b->vz -= dz * c->mass * mag;
			c->vx += dx * b->mass * mag;
			c->vy += dy * b->mass * mag;
			c->vz += dz * b->mass * mag;
		}
	}
	for (int i = 0; i < BODIES; i++) {
		struct body *b = &bodies[i];
		b->x += dt * b->vx;
		b->y += dt * b->vy;
		b->z += dt * b->vz;
	}
}

int main(int argc, char **argv) {
	long n = argc > 1 ? atol(argv[1]) : 500000;
	double px = 0, py = 0, pz = 0, sun = 4 * pi * pi;
	for (int i = 0; i < BODIES; i++) {
		struct body *b = &bodies[i];
		b->vx *= year;
		b->vy *= year;
		b->vz *= year;
		b->mass *= sun;
		px += b->vx * b->mass;
		py += b->vy * b->mass;
		pz += b->vz * b->mass;
	}
	bodies[0].vx = -px / sun;
	bodies[0].vy = -py / sun;
	bodies[0].vz = -pz / sun;
	printf("%.6f\n", energy());
	for (long i = 0; i < n; i++)
		step();
	printf("%.6f\n", energy());
	return 0;
}

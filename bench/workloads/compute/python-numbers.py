# The Sun and its planets, by python3: floating point, lists, tuples
# packages: python3
# quick: yes
import os


def advance(bodies, steps, dt=0.01):
    for _ in range(steps):
        for i, (p, v, m) in enumerate(bodies):
            for q, w, n in bodies[i + 1:]:
                d = [a - b for a, b in zip(p, q)]
                f = dt * (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 0.1) ** -1.5
                for k in range(3):
                    v[k] -= d[k] * n * f
                    w[k] += d[k] * m * f
        for p, v, _ in bodies:
            for k in range(3):
                p[k] += dt * v[k]


system = [([i * 1.5, (i * i) % 7 - 3.0, i % 3 - 1.0], [0.0, 1.0 / (i + 1), 0.1 * i], 10.0 / (i * i + 1)) for i in range(6)]
advance(system, 3000 * int(os.environ.get("scale", 1)))
print(" ".join(f"{x:.9f}" for body in system for x in body[0]))

# gcc -O2 of one large C file
# packages: gcc libc6-dev
prepare()
{
    awk -v n=$((scale * 60)) 'BEGIN {
        print "#include <stdio.h>\n#include <string.h>\nstruct s { int a, b; double d; char t[32]; struct s *next; };"
        for (i = 0; i < n; i++) {
            printf "int f%d(struct s *p, int n)\n{\n    int x = %d;\n    for (int i = 0; i < n; i++) {\n", i, i
            printf "        switch ((x + i) %% %d) {\n", i % 7 + 3
            for (c = 0; c < i % 7 + 3; c++)
                printf "        case %d: x += p->a * %d - (p->b >> %d); p->d += x / %d.0; break;\n", c, c + i, c % 5, c + 2
            printf "        }\n        if (p->next && x & %d)\n            p = p->next;\n        p->t[i & 31] ^= (char)x;\n    }\n", i + 1
            print "    return x + (int)strlen(p->t);\n}"
        }
        print "int main(void)\n{\n    struct s s = {0};\n    return printf(\"%d\\n\", f1(&s, 100));\n}"
    }' >large.c
    gcc -v 2>/dev/null
}
work() { gcc -O2 -S -o large.s large.c; }

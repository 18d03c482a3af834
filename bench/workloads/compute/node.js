// Objects, arrays, closures and JSON by node: code that is compiled while it runs
// packages: nodejs
'use strict';
const scale = Number(process.env.scale || 1);
let x = 42;
const random = () => (x = (x * 1103515245 + 12345) % 2147483648);
const tree = (depth) => (depth ? { left: tree(depth - 1), right: tree(depth - 1), value: random() % 100 } : null);
const sum = (node) => (node ? node.value + sum(node.left) - sum(node.right) : 0);
let total = 0;
for (let i = 0; i < 24 * scale; i++) total += sum(tree(14));
const rows = Array.from({ length: 40000 * scale }, (_, i) => ({ id: i, key: 'k' + (random() % 5000), value: random() / 1000 }));
const groups = new Map();
for (const row of JSON.parse(JSON.stringify(rows))) groups.set(row.key, (groups.get(row.key) || 0) + row.value);
const best = [...groups].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, 3);
const sieve = new Uint8Array(2000000 * scale);
let primes = 0;
for (let i = 2; i < sieve.length; i++) {
    if (sieve[i]) continue;
    primes++;
    for (let j = i * 2; j < sieve.length; j += i) sieve[j] = 1;
}
console.log(total, best.map((b) => b[0] + '=' + b[1].toFixed(3)).join(' '), primes);

# Objects, dictionaries, text, regular expressions and JSON, by python3
# packages: python3
import json
import os
import re
from collections import Counter, defaultdict


class Account:
    def __init__(self, name):
        self.name, self.balance, self.log = name, 0, []

    def move(self, other, amount):
        self.balance -= amount
        other.balance += amount
        self.log.append((other.name, amount))


scale = int(os.environ.get("scale", 1))
accounts = [Account(f"account-{i}") for i in range(200)]
x = 12345
for _ in range(60000 * scale):
    x = (x * 1103515245 + 12345) % (1 << 31)
    accounts[x % 200].move(accounts[(x >> 8) % 200], x % 1000)
text = json.dumps([{"name": a.name, "balance": a.balance, "log": a.log[:80 * scale]} for a in accounts])
back = json.loads(text)
words = Counter(re.findall(r"account-(\d+)", text))
by_length = defaultdict(set)
for word in text.split(","):
    by_length[len(word)].add(word.strip('[]{}" '))
print(sum(a["balance"] for a in back), words.most_common(3), sorted((k, len(v)) for k, v in by_length.items())[:5])

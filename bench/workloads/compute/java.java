// Trees, maps and streams of a Java program: garbage collection, and code that is compiled while it runs
// packages: openjdk-17-jre-headless
import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

class Main {
    static final class Node {
        final Node left, right;
        final int value;

        Node(int depth) {
            left = depth > 0 ? new Node(depth - 1) : null;
            right = depth > 0 ? new Node(depth - 1) : null;
            value = next(100);
        }

        int sum() { return value + (left == null ? 0 : left.sum() - right.sum()); }
    }

    static int seed = 1;

    static int next(int limit) {
        seed = seed * 1664525 + 1013904223;
        return (seed >>> 8) % limit;
    }

    public static void main(String[] args) {
        int scale = Integer.parseInt(System.getenv().getOrDefault("scale", "1"));
        long total = 0;
        for (int i = 0; i < 40 * scale; i++)
            total += new Node(14).sum();
        Map<String, Integer> counts = new HashMap<>();
        for (int i = 0; i < 200000 * scale; i++)
            counts.merge("key-" + next(4000), 1, Integer::sum);
        List<String> best = new ArrayList<>(counts.keySet());
        best.sort(Comparator.comparing((String k) -> -counts.get(k)).thenComparing(k -> k));
        System.out.println(total + " " + best.stream().limit(3).collect(Collectors.joining(" ")));
    }
}

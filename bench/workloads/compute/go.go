// Trees, maps and goroutines of a Go program, its garbage collector at work.
// (The compiler that Debian has: golang-go.)
package main

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
)

type node struct {
	left, right *node
	value       int
}

func grow(depth int, seed *uint32) *node {
	if depth == 0 {
		return nil
	}
	*seed = *seed*1664525 + 1013904223
	return &node{grow(depth-1, seed), grow(depth-1, seed), int(*seed >> 24)}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.value + n.left.sum() - n.right.sum()
}

func main() {
	scale, err := strconv.Atoi(os.Getenv("scale"))
	if err != nil {
		scale = 1
	}
	seed, total := uint32(1), 0
	for i := 0; i < 30*scale; i++ {
		total += grow(15, &seed).sum()
	}
	counts, words := map[string]int{}, make(chan string, 16)
	var wait sync.WaitGroup
	wait.Add(1)
	go func() {
		defer wait.Done()
		for w := range words {
			counts[w]++
		}
	}()
	for i := 0; i < 100000*scale; i++ {
		seed = seed*1664525 + 1013904223
		words <- strings.Repeat("ab", int(seed>>30)+1) + fmt.Sprint(seed>>22)
	}
	close(words)
	wait.Wait()
	keys := make([]string, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return counts[keys[i]] > counts[keys[j]] || counts[keys[i]] == counts[keys[j]] && keys[i] < keys[j] })
	fmt.Println(total, len(keys), keys[:3])
}

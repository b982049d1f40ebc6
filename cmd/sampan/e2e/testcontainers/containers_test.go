// Package testcontainers uses Sampan as programs do whose tests start containers:
// through testcontainers-go, and the environment that it looks at (DOCKER_HOST).
// It is a module of its own, for what that needs is nothing of Sampan's.
package testcontainers

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// A server with a file copied into it, in a network with a client; both are gone
// at the end.
func TestContainers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	net, err := network.New(ctx)
	testcontainers.CleanupNetwork(t, net)
	if err != nil {
		t.Fatal(err)
	}
	server, err := testcontainers.Run(ctx, "busybox",
		testcontainers.WithCmd("sh", "-c", "echo serving; trap exit TERM; httpd -f -p 80 -h /www & wait"),
		testcontainers.WithExposedPorts("80/tcp"),
		network.WithNetwork([]string{"web"}, net),
		testcontainers.WithFiles(testcontainers.ContainerFile{
			Reader: strings.NewReader("copied"), ContainerFilePath: "/www/index.html", FileMode: 0o644,
		}),
		testcontainers.WithWaitStrategy(wait.ForAll(wait.ForLog("serving"), wait.ForListeningPort("80/tcp"), wait.ForHTTP("/").WithPort("80/tcp"))))
	testcontainers.CleanupContainer(t, server)
	if err != nil {
		t.Fatal(err)
	}
	url, err := server.PortEndpoint(ctx, "80/tcp", "http")
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	want(t, "GET "+url, res.Body)

	code, out, err := server.Exec(ctx, []string{"cat", "/www/index.html"}, exec.Multiplexed())
	if err != nil || code != 0 {
		t.Fatalf("exec: exit code %d, %v", code, err)
	}
	want(t, "exec", out)

	client, err := testcontainers.Run(ctx, "busybox",
		testcontainers.WithCmd("wget", "-qO-", "http://web/"),
		network.WithNetwork(nil, net),
		testcontainers.WithWaitStrategy(wait.ForExit()))
	testcontainers.CleanupContainer(t, client)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := client.Logs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	want(t, "logs of the client", logs)
}

func want(t *testing.T, what string, r io.Reader) {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "copied" {
		t.Errorf("%s: %q, %v", what, b, err)
	}
}

package engine

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
)

func TestParseLink(t *testing.T) {
	for text, want := range map[string]string{
		"db": "db db", "db:store": "db store", "/db:/web/store": "db store", "0123:x-y.z": "0123 x-y.z",
		"": "", ":x": "", "db:": "", "a:b:c": "", "a:b c": "",
	} {
		name, alias, err := parseLink(text)
		if got := strings.TrimSpace(name + " " + alias); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
}

// The variables are those that dockerd 20.10 sets.
func TestLinkVariables(t *testing.T) {
	l := linked{link: link{Alias: "my-Store", Name: "db"}, addr: netip.MustParseAddr("172.17.0.7"), hostname: "dbhost",
		env: []string{"FOO=1", "PATH=/x", "HOME=/h", "bare", "X_NAME=a=b"}}
	for _, p := range []string{"81/udp", "79/tcp", "100/tcp", "101/tcp", "102/tcp", "90/tcp", "90/udp"} {
		l.ports = append(l.ports, network.MustParsePort(p))
	}
	want := `MY_STORE_PORT=tcp://172.17.0.7:79
MY_STORE_PORT_100_TCP_START=tcp://172.17.0.7:100
MY_STORE_PORT_100_TCP_PORT_START=100
MY_STORE_PORT_100_TCP_END=tcp://172.17.0.7:102
MY_STORE_PORT_100_TCP_PORT_END=102
`
	for _, p := range []string{"79 tcp", "81 udp", "90 tcp", "90 udp", "100 tcp", "101 tcp", "102 tcp"} {
		num, proto, _ := strings.Cut(p, " ")
		at := "MY_STORE_PORT_" + num + "_" + strings.ToUpper(proto)
		want += at + "=" + proto + "://172.17.0.7:" + num + "\n" + at + "_ADDR=172.17.0.7\n" + at + "_PORT=" + num + "\n" + at + "_PROTO=" + proto + "\n"
	}
	want += "MY_STORE_NAME=/web/my-Store\nMY_STORE_ENV_FOO=1\nMY_STORE_ENV_X_NAME=a=b"
	if got := strings.Join(l.variables("web"), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got, want := l.hosts(), "172.17.0.7\tmy-Store dbhost db"; got != want {
		t.Errorf("hosts: %q, want %q", got, want)
	}
	if own := (&linked{link: link{Alias: "x", Name: "x"}, addr: l.addr}).variables("web"); !slices.Equal(own, []string{"X_NAME=/web/x"}) {
		t.Errorf("without ports: %q", own)
	}
}

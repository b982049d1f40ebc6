package engine

import (
	"testing"

	apinet "github.com/moby/moby/api/types/network"
)

// What the kernel would refuse, or take for a pattern, is refused at once.
func TestBridgeName(t *testing.T) {
	for name, ok := range map[string]bool{
		"mine": true, "my-net.1_x": true, "123456789012345": true,
		"": false, "1234567890123456": false, "a/b": false, "a b": false, "x%d": false, "x:1": false, "..": false, "eth0": false,
	} {
		err := checkNetwork(&apinet.CreateRequest{Name: "n", Options: map[string]string{optionName: name}})
		if (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

package kernel

import (
	"strings"
	"testing"
)

func TestReadConfig(t *testing.T) {
	var all strings.Builder
	seen := map[string]bool{}
	for _, o := range required() {
		if seen[o.name] || o.why == "" {
			t.Errorf("%s is in the table twice, or without a reason", o.name)
		}
		seen[o.name] = true
		all.WriteString("CONFIG_" + o.name + "=y\n")
	}
	got, err := ReadConfig(strings.NewReader(strings.Replace(all.String(), "CONFIG_TUN=y", "CONFIG_TUN=m", 1)))
	if err != nil || got["TUN"] != "m" || got["EROFS_FS"] != "y" || len(got) != len(seen) {
		t.Errorf("%v, %v", got, err)
	}
	_, err = ReadConfig(strings.NewReader(strings.Replace(all.String(), "CONFIG_VIRTIO_FS=y", "# CONFIG_VIRTIO_FS is not set", 1)))
	if err == nil || !strings.HasSuffix(err.Error(), "are off: VIRTIO_FS (shares)") {
		t.Errorf("an option is off: error %v", err)
	}
}

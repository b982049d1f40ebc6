package boot

import (
	"os"
	"path/filepath"
	"testing"
)

func TestShedRoot(t *testing.T) {
	root := t.TempDir()
	for name, stays := range map[string]bool{
		"lib/modules/load": false, "lib64/ld.so": false, "sbin/mke2fs": false,
		"init": true, "sbin/sampan-stage2": true, "bin/busybox": true, "etc/passwd": true,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := os.Stat(path); (err == nil) != stays {
				t.Errorf("%s: stays %v, want %v", name, err == nil, stays)
			}
		}()
	}
	if err := shedRoot(root); err != nil {
		t.Error(err)
	}
}

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// emptyInitrd is a newc archive with nothing but its trailer.
func emptyInitrd() []byte {
	var b bytes.Buffer
	fields := make([]any, 13)
	for i := range fields {
		fields[i] = 0
	}
	const trailer = "TRAILER!!!"
	fields[4], fields[11] = 1, len(trailer)+1 // nlink, name's size
	b.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&b, "%08X", f)
	}
	b.WriteString(trailer)
	b.Write(make([]byte, 512-b.Len()%512))
	return b.Bytes()
}

// reseal makes a bundle's manifest true again.
func reseal(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "manifest.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range m["files"].(map[string]any) {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		f := v.(map[string]any)
		f["size"], f["sha256"] = len(data), hex.EncodeToString(sum[:])
	}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

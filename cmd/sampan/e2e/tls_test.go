package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A registry that isn't on loopback is spoken to over TLS, by the system's
// certificates, and not at all without.
func TestRegistryTLS(t *testing.T) {
	host := otherAddress()
	if host == "" {
		skip(t, "this machine has no address but loopback's, where registries may do without TLS")
	}
	dir := t.TempDir()
	certFile, keyFile := makeCertificate(t, dir, host)
	addr := startRegistryAt(t, host, fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\n", certFile, keyFile))
	ref, err := name.NewTag(addr + "/team/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	pemBytes, err := os.ReadFile(certFile)
	if err != nil || !roots.AppendCertsFromPEM(pemBytes) {
		t.Fatalf("read the certificate: %v", err)
	}
	if err := remote.Write(ref, imageFromArchive(t, "busybox.tar"), remote.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}})); err != nil {
		t.Fatal(err)
	}

	stranger := newHome(t)
	if r := stranger.try(t, "", "sampan", "pull", ref.String()); r.code != 1 || !strings.Contains(r.stderr, "certificate signed by unknown authority") {
		t.Errorf("pulled from a registry that nobody vouches for: %+v", r)
	}
	friend := newHome(t)
	friend.env = []string{"SSL_CERT_FILE=" + certFile}
	friend.sampan(t, "pull", ref.String())
	if got := friend.sampan(t, "run", "--rm", ref.String(), "echo", "over TLS"); got != "over TLS\n" {
		t.Errorf("got %q", got)
	}

	plain := startRegistryAt(t, host)
	if r := friend.try(t, "", "sampan", "pull", plain+"/busybox"); r.code != 1 || !strings.Contains(r.stderr, "HTTP response to HTTPS client") {
		t.Errorf("plain HTTP to another machine: %+v", r)
	}
}

// otherAddress is an address of this machine that isn't loopback's, or "".
func otherAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

// makeCertificate makes a certificate for an address, signed by itself.
func makeCertificate(t *testing.T, dir, host string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sampan test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.ParseIP(host)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

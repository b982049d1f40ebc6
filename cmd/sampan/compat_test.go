package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// compatDoc is the document of which this test writes one part, and the API's
// the other (go test -update).
const compatDoc = "../../docs/compatibility.md"

// same are commands that Docker has under two names.
var same = map[string]string{
	"container ls": "ps", "image ls": "images", "image rm": "rmi", "system events": "events", "system info": "info",
}

// partial says what is missing of a command, or of a flag, that is there.
var partial = map[string]string{
	"cp":                           "of a stopped container /etc/hosts, /etc/hostname and /etc/resolv.conf are the image's",
	"top":                          "ps runs nowhere: its arguments `-ef`, `aux` and `-o` with the usual columns are understood, others refused",
	"inspect":                      "containers, images and volumes (and what `--type` names)",
	"ps --filter":                  "not `is-task`",
	"run --network":                "see docs/network.md",
	"create --network":             "see docs/network.md",
	"update --restart":             "not with `--rm`, as with Docker",
	"run --blkio-weight":           "discarded, with Docker's warning: the guest's disk scheduler has no weights",
	"create --blkio-weight":        "discarded, with Docker's warning: the guest's disk scheduler has no weights",
	"update --blkio-weight":        "discarded, with Docker's warning: the guest's disk scheduler has no weights",
	"network create --scope":       "`local` only",
	"network create --ipam-driver": "`default` only",
	"events --filter":              "those of containers, images, volumes, networks; swarm's match nothing",
}

// why says for flags and commands that are not there what is in their way.
var why = map[string]string{
	"--device-read-bps": "limits of block devices: the guest has one disk for all", "--device-read-iops": "limits of block devices: the guest has one disk for all",
	"--device-write-bps": "limits of block devices: the guest has one disk for all", "--device-write-iops": "limits of block devices: the guest has one disk for all",
	"--blkio-weight-device": "limits of block devices: the guest has one disk for all", "--blkio-weight": "the guest's disk scheduler has no weights",
	"--disable-content-trust": "there is no content trust", "--gpus": "the guest has none", "--isolation": "Windows's", "--runtime": "there is one",
	"--kernel-memory": "cgroup v1's", "--oom-kill-disable": "cgroup v1's", "--memory-swappiness": "cgroup v1's",
	"--cpu-rt-period": "cgroup v1's", "--cpu-rt-runtime": "cgroup v1's", "--cgroup-parent": "the guest's cgroups are the agent's",
	"--volume-driver": "there is one", "--link-local-ip": "old", "--storage-opt": "layers have no quota",
	"--use-api-socket": "experimental", "--cluster": "there is no swarm", "--scope": "there is no swarm",
	"--availability": "there is no swarm", "--group": "there is no swarm", "--limit-bytes": "there is no swarm", "--required-bytes": "there is no swarm",
	"--secret": "there is no swarm", "--sharing": "there is no swarm", "--topology-preferred": "there is no swarm", "--topology-required": "there is no swarm", "--type": "there is no swarm",
	"--platform": "the guest runs its own architecture alone", "--config-from": "there is no swarm", "--config-only": "there is no swarm", "--attachable": "there is no swarm", "--ingress": "there is no swarm",
}

// never are flags that are there, for the message, and that the engine always
// refuses.
var never = map[string]string{
	"run --oom-kill-disable": "cgroup v1's", "create --oom-kill-disable": "cgroup v1's",
	"network connect --driver-opt": "endpoints have no options", "network connect --link-local-ip": "old",
	"network create --ingress": "there is no swarm", "network create --config-only": "there is no swarm", "network create --config-from": "there is no swarm",
}

// TestCompatibility keeps the document's part about commands true.
func TestCompatibility(t *testing.T) {
	list, err := os.ReadFile("testdata/docker.txt")
	if err != nil {
		t.Fatal(err)
	}
	root := newRootCommand(newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" }))
	var b strings.Builder
	b.WriteString("| command | | flags: yes | flags: no, and why |\n|---|---|---|---|\n")
	var name string
	var yes, no []string
	row := func() {
		if name != "" {
			b.WriteString(commandRow(root, name, yes, no))
		}
		yes, no = nil, nil
	}
	for line := range strings.Lines(string(list)) {
		line = strings.TrimRight(line, "\n")
		switch flag := strings.TrimSpace(line); {
		case strings.HasPrefix(line, "#"):
		case flag == line:
			row()
			name = line
		case command(root, name) == nil:
		default:
			long := flag[strings.Index(flag, "--"):]
			if f := command(root, name).Flags().Lookup(long[2:]); f == nil {
				about := why[long]
				if about == "" {
					about = "not there yet"
				}
				no = append(no, note("`"+long+"`", about))
			} else if about, refused := f.Value.(refusedValue); refused {
				no = append(no, note("`"+long+"`", string(about)))
			} else if short, _, both := strings.Cut(flag, ", "); both && f.Shorthand != short[1:] {
				t.Errorf("%s %s: the short form is -%s, Docker's is %s", name, long, f.Shorthand, short)
			} else if about := never[name+" "+long]; about != "" {
				no = append(no, note("`"+long+"`", about))
			} else {
				yes = append(yes, note("`"+long+"`", partial[name+" "+long]))
			}
		}
	}
	row()
	section(t, "commands", b.String())
}

func commandRow(root *cobra.Command, name string, yes, no []string) string {
	status := "yes"
	switch cmd := command(root, name); {
	case cmd == nil:
		about := refused[strings.Fields(name)[0]]
		if about == "" {
			about = "not there yet"
		}
		status = note("no", about)
	case partial[name] != "":
		status = note("partial", partial[name])
	case same[name] != "":
		status = "yes, as `" + same[name] + "`"
	case strings.HasPrefix(name, "container ") || strings.HasPrefix(name, "image "):
		if word := strings.Fields(name)[1]; command(root, word) != nil && word != "inspect" {
			status = "yes, as `" + word + "`"
		}
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |\n", name, status, strings.Join(yes, " "), strings.Join(no, " "))
}

func note(what, about string) string {
	if about == "" {
		return what
	}
	return what + " (" + about + ")"
}

// command finds a command by its words; nil when there is none.
func command(root *cobra.Command, name string) *cobra.Command {
	words := strings.Fields(name)
	cmd, rest, err := root.Find(words)
	if err != nil || len(rest) > 0 || cmd == root || cmd.Name() != words[len(words)-1] && !slices.Contains(cmd.Aliases, words[len(words)-1]) {
		return nil
	}
	return cmd
}

// section compares a part of the document, between its two marks, or writes it.
func section(t *testing.T, name, want string) {
	t.Helper()
	text, err := os.ReadFile(compatDoc)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+": made by go test -update -->\n", "<!-- end of "+name+" -->"
	before, rest, ok := strings.Cut(string(text), begin)
	got, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s: no part %q", compatDoc, name)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the program does (go test -update writes it)", compatDoc)
	}
	if err := os.WriteFile(compatDoc, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

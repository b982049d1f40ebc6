package main

import (
	"errors"
	"strings"
)

// refused are Docker's commands that Sampan has not, with what to do instead.
var refused = map[string]string{
	"build":      "build images with another tool, and bring them in with 'sampan load' or 'sampan pull'",
	"builder":    "build images with another tool, and bring them in with 'sampan load' or 'sampan pull'",
	"buildx":     "build images with another tool, and bring them in with 'sampan load' or 'sampan pull'",
	"bake":       "build images with another tool, and bring them in with 'sampan load' or 'sampan pull'",
	"checkpoint": "",
	"compose":    "use the docker client's: DOCKER_HOST=unix://$SAMPAN_HOME/docker.sock docker compose",
	"config":     "",
	"context":    "SAMPAN_HOME selects the daemon",
	"manifest":   "",
	"node":       "there is no swarm",
	"plugin":     "",
	"scout":      "",
	"search":     "registries have no common way to be searched",
	"secret":     "there is no swarm",
	"service":    "there is no swarm",
	"stack":      "there is no swarm",
	"swarm":      "Sampan is one machine",
	"trust":      "",
}

// refusal names a command of Docker's that Sampan has not; nil for any other
// word.
func refusal(name string) error {
	hint, ok := refused[name]
	if !ok {
		return nil
	}
	text := "sampan: " + name + " is not supported"
	if hint != "" {
		text += ": " + hint
	}
	return errors.New(strings.TrimSpace(text))
}

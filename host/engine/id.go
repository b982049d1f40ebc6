package engine

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
)

// newID is 64 random hexadecimal digits. One whose first 12 are all decimal is
// avoided, as Docker does: that is a container's host name.
func newID() string {
	for {
		var b [32]byte
		rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		for _, c := range id[:12] {
			if c > '9' {
				return id
			}
		}
	}
}

// newName is for a container that was given none.
func newName() string {
	return pick(adjectives) + "_" + pick(surnames)
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		panic(err) // rand.Reader never fails
	}
	return words[n.Int64()]
}

var adjectives = []string{
	"able", "agile", "amber", "ample", "avid", "bold", "brave", "brisk",
	"calm", "candid", "civil", "clever", "crisp", "deft", "eager", "early",
	"exact", "fair", "fleet", "fond", "frank", "fresh", "gentle", "glad",
	"grand", "hardy", "jolly", "keen", "kind", "light", "lively", "loyal",
	"lucid", "mellow", "merry", "mild", "neat", "nimble", "noble", "open",
	"patient", "plain", "polite", "prompt", "proud", "quick", "quiet", "rapid",
	"ready", "serene", "sharp", "silent", "smooth", "solid", "sound", "spry",
	"steady", "still", "stout", "sunny", "swift", "tidy", "vivid", "witty",
}

// surnames of navigators, shipbuilders and those who charted the seas.
var surnames = []string{
	"amundsen", "baffin", "barents", "battuta", "beaufort", "bering", "blackburn",
	"bougainville", "bowditch", "cabot", "chichester", "cook", "cousteau",
	"dampier", "dias", "drake", "earle", "eriksson", "flinders", "franklin",
	"frobisher", "gama", "harrison", "hudson", "joyon", "joyner", "kupe",
	"macarthur", "magellan", "maury", "mercator", "nansen", "nelson", "noyce",
	"piailug", "polo", "ross", "scoresby", "shackleton", "slocum", "stevin",
	"tabarly", "tasman", "tupaia", "vancouver", "weddell", "zhenghe",
}

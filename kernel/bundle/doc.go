// Package bundle makes guest bundles: a kernel and tools from Debian's
// packages, and the agent, become what package kernel opens.
//
//	apt (the machine's mirror, suite trixie) ─► cache ─► unpacked packages ─┐
//	go build ./cmd/sampan-agent ────────────────────────────────────────────┴─► dist/guest-ARCH
//
// It runs as an ordinary user: apt works in a directory of its own, packages
// are unpacked without being installed, and the archive's device nodes exist
// only in the archive. Packages are fetched once; later builds use the cache
// and no network until they are asked to refresh it.
//
// Hazard: several builds may run at once. The cache is under a kernel lock,
// and the finished directory takes its place by an exchange of names, so a
// reader sees the old bundle or the new one. Equal inputs make equal bytes.
package bundle

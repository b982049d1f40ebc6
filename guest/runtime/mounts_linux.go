package runtime

import (
	"errors"
	"fmt"
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"sampan/guest/runtime/stage2"
)

// mountAttr is what a mount option does to the mount's attributes.
type mountAttr struct {
	set, clear uint64
	recursive  bool
}

// mountAttrs are the options of mount(8) and of runtime-spec that concern the
// mount rather than the file system. "ro" concerns one mount, "rro" all that
// is mounted below it too.
var mountAttrs = map[string]mountAttr{
	"ro":             {set: unix.MOUNT_ATTR_RDONLY},
	"rw":             {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":         {set: unix.MOUNT_ATTR_NOSUID},
	"suid":           {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":          {set: unix.MOUNT_ATTR_NODEV},
	"dev":            {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":         {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":           {clear: unix.MOUNT_ATTR_NOEXEC},
	"noatime":        {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":          {clear: unix.MOUNT_ATTR__ATIME},
	"relatime":       {clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":     {clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":    {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime":  {clear: unix.MOUNT_ATTR__ATIME},
	"nodiratime":     {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":       {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":    {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":      {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"rro":            {set: unix.MOUNT_ATTR_RDONLY, recursive: true},
	"rrw":            {clear: unix.MOUNT_ATTR_RDONLY, recursive: true},
	"rnosuid":        {set: unix.MOUNT_ATTR_NOSUID, recursive: true},
	"rsuid":          {clear: unix.MOUNT_ATTR_NOSUID, recursive: true},
	"rnodev":         {set: unix.MOUNT_ATTR_NODEV, recursive: true},
	"rdev":           {clear: unix.MOUNT_ATTR_NODEV, recursive: true},
	"rnoexec":        {set: unix.MOUNT_ATTR_NOEXEC, recursive: true},
	"rexec":          {clear: unix.MOUNT_ATTR_NOEXEC, recursive: true},
	"rnodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME, recursive: true},
	"rdiratime":      {clear: unix.MOUNT_ATTR_NODIRATIME, recursive: true},
	"rnoatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"ratime":         {clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"rrelatime":      {clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"rnorelatime":    {clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"rstrictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"rnostrictatime": {clear: unix.MOUNT_ATTR__ATIME, recursive: true},
	"rnosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW, recursive: true},
	"rsymfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW, recursive: true},
}

// propagation is how mounts spread, of one mount or of a tree.
type propagation struct {
	flag uint64
	tree bool
}

var propagations = map[string]propagation{
	"private":     {unix.MS_PRIVATE, false},
	"rprivate":    {unix.MS_PRIVATE, true},
	"slave":       {unix.MS_SLAVE, false},
	"rslave":      {unix.MS_SLAVE, true},
	"shared":      {unix.MS_SHARED, false},
	"rshared":     {unix.MS_SHARED, true},
	"unbindable":  {unix.MS_UNBINDABLE, false},
	"runbindable": {unix.MS_UNBINDABLE, true},
}

// ignoredOptions mean what happens anyway, or only concern mount(8).
var ignoredOptions = map[string]bool{
	"defaults": true, "bind": true, "rbind": true, "async": true, "nomand": true,
	"newinstance": true, // every devpts is, since Linux 4.7
}

// unsupportedOptions are of the spec, but not of this runtime.
var unsupportedOptions = map[string]bool{"tmpcopyup": true, "idmap": true, "ridmap": true, "mand": true}

// mountPlan is one of the spec's mounts.
func mountPlan(m specs.Mount) (stage2.Mount, error) {
	plan := stage2.Mount{Dest: path.Join("/", m.Destination), Type: m.Type, Source: m.Source}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			plan.Type = ""
			plan.Recursive = o == "rbind"
		}
	}
	if m.Type == "bind" {
		plan.Type = ""
	}
	if plan.Type == "cgroup" {
		plan.Type = "cgroup2" // the spec's name for whatever the system has
	}
	if plan.Type == "" && !path.IsAbs(m.Source) {
		return plan, fmt.Errorf("source %q is not an absolute path", m.Source)
	}
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return plan, fmt.Errorf("id mappings: %w", errors.ErrUnsupported)
	}
	for _, o := range m.Options {
		attr, isAttr := mountAttrs[o]
		spread, isSpread := propagations[o]
		switch {
		case isAttr && attr.recursive:
			plan.RecSet, plan.RecClear = plan.RecSet&^attr.clear|attr.set, plan.RecClear&^attr.set|attr.clear
		case isAttr:
			plan.Set, plan.Clear = plan.Set&^attr.clear|attr.set, plan.Clear&^attr.set|attr.clear
		case isSpread:
			plan.Propagation, plan.PropRec = spread.flag, spread.tree
		case unsupportedOptions[o]:
			return plan, fmt.Errorf("option %q: %w", o, errors.ErrUnsupported)
		case ignoredOptions[o]:
		case plan.Type == "":
			return plan, fmt.Errorf("option %q: unknown for a bind mount", o)
		default:
			plan.Options = append(plan.Options, o)
		}
	}
	return plan, nil
}

package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
)

// mountsValue is a list of "type=TYPE,target=PATH,…" (--mount).
type mountsValue struct{ list []mount.Mount }

func (v *mountsValue) String() string { return "" }
func (v *mountsValue) Type() string   { return "mount" }
func (v *mountsValue) Set(s string) error {
	m, err := parseMount(s)
	if err == nil {
		v.list = append(v.list, m)
	}
	return err
}

// mountSwitches may stand without a value, which means true.
var mountSwitches = map[string]bool{"readonly": true, "ro": true, "volume-nocopy": true, "bind-nonrecursive": true, "bind-create-src": true}

// mountFields set one field each. Those of a group of options make the group.
var mountFields = map[string]func(m *mount.Mount, value string) error{
	"type":   func(m *mount.Mount, v string) error { m.Type = mount.Type(strings.ToLower(v)); return nil },
	"source": mountSource, "src": mountSource,
	"target": mountTarget, "dst": mountTarget, "destination": mountTarget,
	"readonly": mountReadOnly, "ro": mountReadOnly,
	"consistency": func(m *mount.Mount, v string) error {
		m.Consistency = mount.Consistency(strings.ToLower(v))
		return nil
	},
	"bind-propagation": func(m *mount.Mount, v string) error {
		bindOptions(m).Propagation = mount.Propagation(strings.ToLower(v))
		return nil
	},
	"bind-nonrecursive": func(m *mount.Mount, v string) error {
		return setBool(&bindOptions(m).NonRecursive, "bind-nonrecursive", v)
	},
	"bind-create-src": func(m *mount.Mount, v string) error {
		return setBool(&bindOptions(m).CreateMountpoint, "bind-create-src", v)
	},
	"bind-recursive": func(m *mount.Mount, v string) error {
		o := bindOptions(m)
		switch v {
		case "enabled":
		case "disabled":
			o.NonRecursive = true
		case "writable":
			o.ReadOnlyNonRecursive = true
		case "readonly":
			o.ReadOnlyForceRecursive = true
		default:
			return fmt.Errorf(`invalid value for bind-recursive: %s (must be "enabled", "disabled", "writable", or "readonly")`, v)
		}
		return nil
	},
	"volume-subpath": func(m *mount.Mount, v string) error { volumeOptions(m).Subpath = v; return nil },
	"volume-nocopy": func(m *mount.Mount, v string) error {
		return setBool(&volumeOptions(m).NoCopy, "volume-nocopy", v)
	},
	"volume-label": func(m *mount.Mount, v string) error {
		o := volumeOptions(m)
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		key, value, _ := strings.Cut(v, "=")
		o.Labels[key] = value
		return nil
	},
	"volume-driver": func(m *mount.Mount, v string) error { volumeDriver(m).Name = v; return nil },
	"volume-opt": func(m *mount.Mount, v string) error {
		d := volumeDriver(m)
		if d.Options == nil {
			d.Options = map[string]string{}
		}
		key, value, _ := strings.Cut(v, "=")
		d.Options[key] = value
		return nil
	},
	"tmpfs-size": func(m *mount.Mount, v string) (err error) {
		if tmpfsOptions(m).SizeBytes, err = units.RAMInBytes(v); err != nil {
			err = fmt.Errorf("invalid value for tmpfs-size: %s", v)
		}
		return err
	},
	"tmpfs-mode": func(m *mount.Mount, v string) error {
		mode, err := strconv.ParseUint(v, 8, 32)
		if err != nil {
			return fmt.Errorf("invalid value for tmpfs-mode: %s", v)
		}
		tmpfsOptions(m).Mode = os.FileMode(mode)
		return nil
	},
	"image-subpath": func(m *mount.Mount, v string) error {
		if m.ImageOptions == nil {
			m.ImageOptions = &mount.ImageOptions{}
		}
		m.ImageOptions.Subpath = v
		return nil
	},
}

func mountSource(m *mount.Mount, v string) error {
	if v == "." || strings.HasPrefix(v, "."+string(filepath.Separator)) || strings.HasPrefix(v, "..") {
		abs, err := filepath.Abs(v)
		if err != nil {
			return err
		}
		v = abs
	}
	m.Source = v
	return nil
}

func mountTarget(m *mount.Mount, v string) error   { m.Target = v; return nil }
func mountReadOnly(m *mount.Mount, v string) error { return setBool(&m.ReadOnly, "readonly", v) }

func setBool(b *bool, key, v string) (err error) {
	if *b, err = strconv.ParseBool(v); err != nil {
		return fmt.Errorf("invalid value for %s: %s", key, v)
	}
	return nil
}

func bindOptions(m *mount.Mount) *mount.BindOptions {
	if m.BindOptions == nil {
		m.BindOptions = &mount.BindOptions{}
	}
	return m.BindOptions
}

func volumeOptions(m *mount.Mount) *mount.VolumeOptions {
	if m.VolumeOptions == nil {
		m.VolumeOptions = &mount.VolumeOptions{}
	}
	return m.VolumeOptions
}

func volumeDriver(m *mount.Mount) *mount.Driver {
	o := volumeOptions(m)
	if o.DriverConfig == nil {
		o.DriverConfig = &mount.Driver{}
	}
	return o.DriverConfig
}

func tmpfsOptions(m *mount.Mount) *mount.TmpfsOptions {
	if m.TmpfsOptions == nil {
		m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return m.TmpfsOptions
}

// parseMount reads the value of one --mount.
func parseMount(s string) (mount.Mount, error) {
	m := mount.Mount{Type: mount.TypeVolume}
	if s == "" {
		return m, errors.New("value is empty")
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return m, err
	}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		key = strings.ToLower(key)
		set := mountFields[key]
		switch {
		case !ok && mountSwitches[key]:
			value = "true"
		case !ok:
			return m, fmt.Errorf("invalid field '%s' must be a key=value pair", field)
		case set == nil:
			return m, fmt.Errorf("unexpected key '%s' in '%s'", key, field)
		}
		if err := set(&m, value); err != nil {
			return m, err
		}
	}
	return m, checkMount(m)
}

func checkMount(m mount.Mount) error {
	if m.Type == "" {
		return errors.New("type is required")
	}
	if m.Target == "" {
		return errors.New("target is required")
	}
	for _, group := range []struct {
		of  mount.Type
		set bool
	}{
		{mount.TypeVolume, m.VolumeOptions != nil}, {mount.TypeImage, m.ImageOptions != nil},
		{mount.TypeBind, m.BindOptions != nil}, {mount.TypeTmpfs, m.TmpfsOptions != nil},
	} {
		if group.set && m.Type != group.of {
			return fmt.Errorf("cannot mix '%s-*' options with mount type '%s'", group.of, m.Type)
		}
	}
	if o := m.BindOptions; o != nil && (o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive) {
		if !m.ReadOnly {
			return errors.New("option 'bind-recursive' requires 'readonly' to be specified in conjunction")
		}
		if o.ReadOnlyForceRecursive && o.Propagation != mount.PropagationRPrivate {
			return errors.New("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
		}
	}
	return nil
}

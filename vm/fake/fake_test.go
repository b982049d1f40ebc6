package fake_test

import (
	"context"
	"errors"
	"testing"

	"sampan/vm"
	"sampan/vm/fake"
	"sampan/vm/vmtest"
	"sampan/vm/vmtest/guest"
)

func TestConformance(t *testing.T) {
	d := &fake.Driver{Guest: func(ctx context.Context, g fake.Guest) error {
		err := guest.Serve(ctx, guest.Env{Listen: g.Listen, Dial: g.Dial})
		if errors.Is(err, guest.ErrPowerOff) || errors.Is(err, guest.ErrReset) {
			return nil
		}
		return err
	}}
	vmtest.Run(t, func(t *testing.T) vm.Machine {
		m, err := d.Boot(t.Context(), vm.Config{Kernel: "k", Initrd: "i", CPUs: 1, Memory: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return m
	})
}

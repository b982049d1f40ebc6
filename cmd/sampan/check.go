package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

func newMachineCheckCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Verify the image store, and repair what can be",
		Args:  argCount(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			resp, err := a.machineCall(cmd.Context(), true, http.MethodPost, "/check", nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var report struct {
				Layers, Documents int
				Repaired, Lost    []string
			}
			if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
				return err
			}
			for _, line := range report.Repaired {
				fmt.Fprintln(a.out, "Repaired:", line)
			}
			for _, line := range report.Lost {
				fmt.Fprintln(a.out, "Lost:", line)
			}
			fmt.Fprintf(a.out, "Verified: %d layers, %d documents\n", report.Layers, report.Documents)
			if len(report.Lost) > 0 {
				return errors.New("the image store has lost something")
			}
			return nil
		},
	}
}

/** Files of the result as links, the report, and sending DICOM objects to the archive. */

import { useState } from "preact/hooks";
import { api, files, message } from "../api";
import { Download, Page } from "../parts/icons";
import { toast } from "../store";
import type { Params, Result } from "../types";

const KINDS: Record<string, string> = {
  scan: "Scan",
  anomaly_map: "Anomaly map",
  mask: "Mask",
  bands: "Bands",
  reconstruction: "Pseudo-healthy image",
  uncertainty_map: "Uncertainty map",
  brain_mask: "Brain mask",
};
const DICOM: Record<string, string> = { segmentation: "Segmentation", parametric_map: "Parametric map", report: "Structured report" };

function FileLink({ url, name, text, open }: { url: string; name: string; text: string; open?: boolean }) {
  return open ? (
    <a class="button" href={url} target="_blank" rel="noopener"><Page /> {text}</a>
  ) : (
    <a href={url} download={name}>{text}</a>
  );
}

export function Downloads({ result, image, params, dicom }: { result: Result; image: string; params: Params; dicom: boolean }) {
  const all = { ...params, model: result.model };
  const kinds = Object.keys(KINDS).filter((kind) => kind in result.files || kind === "mask");
  return (
    <section class="downloads stack" aria-label="Report and files">
      <div class="row wrap">
        <FileLink url={files.report(image, "report.html", all)} name={`${image}-report.html`} text="Report (HTML, to print)" open />
        <FileLink url={files.report(image, "report.json", all)} name={`${image}-report.json`} text="Report (JSON)" />
      </div>
      <h3><Download /> Files</h3>
      <table class="files">
        <tbody>
          {kinds.map((kind) => (
            <tr key={kind}>
              <th scope="row">{KINDS[kind]}</th>
              <td><FileLink url={files.volume(image, kind, "nii.gz", all)} name={`${image}-${kind}.nii.gz`} text="NIfTI" /></td>
              <td><FileLink url={files.volume(image, kind, "nrrd", all)} name={`${image}-${kind}.nrrd`} text="NRRD" /></td>
            </tr>
          ))}
        </tbody>
      </table>
      {dicom && <Archive result={result} image={image} params={params} />}
    </section>
  );
}

function Archive({ result, image, params }: { result: Result; image: string; params: Params }) {
  const [picked, setPicked] = useState<string[]>(Object.keys(DICOM));
  const [busy, setBusy] = useState(false);
  const all = { ...params, model: result.model };
  const send = async () => {
    setBusy(true);
    try {
      const { stored } = await api.archive(image, result.model, params, picked);
      toast(stored.length ? `Stored in the archive: ${stored.map((one) => DICOM[one.object] ?? one.object).join(", ")}.` : "The archive took nothing.");
    } catch (error) {
      toast(`Not sent: ${message(error)}`, "error");
    }
    setBusy(false);
  };
  return (
    <fieldset class="choices">
      <legend>DICOM objects</legend>
      {Object.entries(DICOM).map(([object, text]) => (
        <div class="row" key={object}>
          <label class="tick grow"><input type="checkbox" checked={picked.includes(object)} onChange={(event) => setPicked(event.currentTarget.checked ? [...picked, object] : picked.filter((one) => one !== object))} /><span>{text}</span></label>
          <FileLink url={files.dicom(image, object, all)} name={`${image}-${object}.dcm`} text="Download" />
        </div>
      ))}
      <button type="button" disabled={busy || !picked.length} onClick={() => void send()}>{busy ? "Sending…" : "Send to the archive"}</button>
    </fieldset>
  );
}
